"""How many replicas, and when: autoscalers on a day's traffic, simulated.

`replica` runs the scheduler's own code under an open stream of requests. `fleet` is a model of many
such replicas, fitted to that code by `fit`. `autoscaler` has the algorithm of Kubernetes' HPA,
`traffic` a day. `python -m bench.scaling` prints the table of docs/scaling.md.
"""
