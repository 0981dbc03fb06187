{{/* A pod's name is this name, "-", ten characters, "-" and five; Kubernetes cuts the name at 63. */}}
{{- define "matryo.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 46 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "matryo.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{/* Labels of an object. Call with (dict "root" $ "component" NAME). */}}
{{- define "matryo.labels" -}}
{{- with .root -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "matryo.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "matryo.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "matryo.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "matryo.home" -}}/var/lib/matryo{{- end -}}

{{- define "matryo.keysSecret" -}}
{{- if .Values.keys.existingSecret -}}
{{- .Values.keys.existingSecret -}}
{{- else if .Values.keys.toml -}}
{{- include "matryo.fullname" . }}-keys
{{- end -}}
{{- end -}}

{{- define "matryo.scheme" -}}
{{- if .Values.tls.existingSecret }}https{{ else }}http{{ end -}}
{{- end -}}

{{/* The scheme of /metrics and of the probes: a port of its own has no TLS. */}}
{{- define "matryo.metricsScheme" -}}
{{- if .Values.metrics.port }}http{{ else }}{{ include "matryo.scheme" . }}{{ end -}}
{{- end -}}

{{/* A probe of the kubelet, which checks no certificate. */}}
{{- define "matryo.probe" -}}
httpGet:
  path: {{ .path }}
  port: {{ ternary "metrics" "http" (gt (int .root.Values.metrics.port) 0) }}
  scheme: {{ include "matryo.metricsScheme" .root | upper }}
{{ toYaml .times }}
{{- end -}}

{{- define "matryo.terminationGracePeriod" -}}
{{- with .Values.shutdown -}}
{{- add (ceil .preStopSeconds) (ceil .drainDelaySeconds) (ceil .graceSeconds) (ceil .marginSeconds) -}}
{{- end -}}
{{- end -}}

{{/* Seconds of backlog of this release's pods; the labels are those of the Prometheus operator. */}}
{{- define "matryo.backlogQuery" -}}
{{- if .Values.autoscaling.keda.query -}}
{{- tpl .Values.autoscaling.keda.query . -}}
{{- else -}}
sum(matryo_backlog_seconds{namespace="{{ .Release.Namespace }}",pod=~"{{ include "matryo.fullname" . }}-[a-z0-9]+-[a-z0-9]{5}"})
{{- end -}}
{{- end -}}

{{/* What values.schema.json cannot say. */}}
{{- define "matryo.check" -}}
{{- with .Values -}}
{{- if ne (toString (dig "requests" "memory" "" .resources)) (toString (dig "limits" "memory" "" .resources)) -}}
{{- fail (printf "resources.requests.memory is %v and resources.limits.memory is %v: set both to the same value, because a pod over its request is the first that a full node evicts." (dig "requests" "memory" "none" .resources) (dig "limits" "memory" "none" .resources)) -}}
{{- end -}}
{{- if and (eq .model.source "claim") (not .model.existingClaim) -}}
{{- fail "model.source is claim and model.existingClaim is empty: name a PersistentVolumeClaim that holds the store, or set model.source to image or init." -}}
{{- end -}}
{{- if and (eq .model.source "init") (not .model.ids) -}}
{{- fail "model.source is init and model.ids is empty: list the ids of the models to pull and build." -}}
{{- end -}}
{{- if and (eq .model.source "init") .model.readOnly -}}
{{- fail "model.source is init and model.readOnly is true: the init container writes the store. Set model.readOnly to false." -}}
{{- end -}}
{{- if and .keys.existingSecret .keys.toml -}}
{{- fail "keys.existingSecret and keys.toml are both set: keep one of them." -}}
{{- end -}}
{{- if and .tls.clientCA.existingSecret (not .tls.existingSecret) -}}
{{- fail "tls.clientCA.existingSecret is set without tls.existingSecret: client certificates need TLS. Set tls.existingSecret." -}}
{{- end -}}
{{- if and .tls.clientCA.existingSecret (not .metrics.port) -}}
{{- fail "tls.clientCA.existingSecret is set and metrics.port is 0: the kubelet has no client certificate for its probes. Set metrics.port." -}}
{{- end -}}
{{- if and .metrics.serviceMonitor.enabled .metrics.podMonitor.enabled -}}
{{- fail "metrics.serviceMonitor.enabled and metrics.podMonitor.enabled are both true: every pod would be scraped twice. Enable one of them." -}}
{{- end -}}
{{- if and .metrics.port (or (eq (int .metrics.port) (int .http.port)) (and .grpc.enabled (eq (int .metrics.port) (int .grpc.port)))) -}}
{{- fail (printf "metrics.port is %v, which is another port of the container too: choose another." .metrics.port) -}}
{{- end -}}
{{- if and .grpc.enabled (eq (int .grpc.port) (int .http.port)) -}}
{{- fail (printf "grpc.port and http.port are both %v: choose two ports." .grpc.port) -}}
{{- end -}}
{{- if and (eq .autoscaling.type "keda") (not .autoscaling.keda.serverAddress) -}}
{{- fail "autoscaling.type is keda and autoscaling.keda.serverAddress is empty: set the URL of Prometheus." -}}
{{- end -}}
{{- if and (eq .autoscaling.type "keda") (not .autoscaling.backlogSeconds) -}}
{{- fail "autoscaling.type is keda and autoscaling.backlogSeconds is 0: set the seconds of backlog, or set autoscaling.type to hpa." -}}
{{- end -}}
{{- if and (eq .autoscaling.type "hpa") (not .autoscaling.backlogSeconds) (not .autoscaling.cpuPercent) -}}
{{- fail "autoscaling.backlogSeconds and autoscaling.cpuPercent are both 0: the autoscaler needs at least one of them." -}}
{{- end -}}
{{- if gt (int .autoscaling.minReplicas) (int .autoscaling.maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas is %v and autoscaling.maxReplicas is %v: the least must not exceed the most." .autoscaling.minReplicas .autoscaling.maxReplicas) -}}
{{- end -}}
{{- if and .ingress.enabled (not .ingress.hosts) -}}
{{- fail "ingress.enabled is true and ingress.hosts is empty: list at least one host." -}}
{{- end -}}
{{- if and .httpRoute.enabled (not .httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled is true and httpRoute.parentRefs is empty: name the Gateway." -}}
{{- end -}}
{{- end -}}
{{- end -}}
