"""The Helm chart: what is rendered, whether Kubernetes would take it, and whether it speaks of Matryo as it is."""
