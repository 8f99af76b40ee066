{{/* Names and labels. */}}
{{- define "cloister.name" -}}
{{- if .Values.nameOverride -}}{{ .Values.nameOverride | trunc 36 | trimSuffix "-" }}
{{- else if contains "cloister" .Release.Name -}}{{ .Release.Name | trunc 36 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-cloister" .Release.Name | trunc 36 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{/* (dict "root" $ "component" "keyservice" "pool" "") */}}
{{- define "cloister.selector" -}}
app.kubernetes.io/name: cloister
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- if .pool }}
cloister.dev/pool: {{ .pool }}
{{- end }}
{{- end -}}

{{- define "cloister.labels" -}}
{{ include "cloister.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* One image: (dict "image" .Values.image "what" "image") */}}
{{- define "cloister.image" -}}
{{- if not .image.repository -}}{{ fail (printf "%s.repository is not set; docs/how-to/image.md says how to build the image" .what) }}{{- end -}}
{{- if .image.digest -}}{{ .image.repository }}@{{ .image.digest }}
{{- else if .image.tag -}}{{ .image.repository }}:{{ .image.tag }}
{{- else -}}{{ fail (printf "%s.tag or %s.digest is not set" .what .what) }}
{{- end -}}
{{- end -}}

{{- define "cloister.keyserviceUrl" -}}
{{- if .Values.keyservice.enabled -}}
{{ ternary "https" "http" (ne .Values.keyservice.tlsSecret "") }}://{{ include "cloister.name" . }}-keyservice.{{ .Release.Namespace }}.svc:8080
{{- else if .Values.keyservice.address -}}{{ .Values.keyservice.address }}
{{- else -}}{{ fail "keyservice.enabled is false and keyservice.address is not set: pools have no KeyService" }}
{{- end -}}
{{- end -}}

{{/* The settings of one pool over the defaults, as JSON: (dict "root" $ "pool" "name") */}}
{{- define "cloister.pool" -}}
{{- mustMergeOverwrite (deepCopy .root.Values.poolDefaults) (deepCopy (index .root.Values.pools .pool)) | toJson -}}
{{- end -}}

{{- define "cloister.tomlKey" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . -}}{{ . }}{{- else -}}{{ toJson . }}{{- end -}}
{{- end -}}

{{/* A table as TOML; what JSON writes of texts, numbers and arrays is TOML too: (dict "name" "" "table" {...}) */}}
{{- define "cloister.toml" -}}
{{- $name := .name -}}
{{- range $key, $value := .table -}}
{{- if not (kindIs "map" $value) }}
{{ include "cloister.tomlKey" $key }} = {{ toJson $value }}
{{- end -}}
{{- end -}}
{{- range $key, $value := .table -}}
{{- if kindIs "map" $value }}
{{- $inner := include "cloister.tomlKey" $key }}
{{- if $name }}{{ $inner = printf "%s.%s" $name $inner }}{{ end }}

[{{ $inner }}]
{{- include "cloister.toml" (dict "name" $inner "table" $value) }}
{{- end -}}
{{- end -}}
{{- end -}}
