{{/* What every pod has, so that each satisfies the Pod Security Standard "restricted". */}}
{{- define "cloister.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
# Always would give files that services keep to themselves to the group, at every start.
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "cloister.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Lines of a pod's spec that do not depend on what runs: (dict "root" $ "at" .Values.witnesses "account" "witness" "token" false) */}}
{{- define "cloister.podBasics" -}}
serviceAccountName: {{ include "cloister.name" .root }}-{{ .account }}
automountServiceAccountToken: {{ default false .token }}
enableServiceLinks: false
securityContext:
  {{- include "cloister.podSecurity" . | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .at.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .at.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .at.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Apart from each other: by host as `antiAffinity` says, and by zone as far as that goes.
     (dict "root" $ "component" "witness" "pool" "" "kind" "required") */}}
{{- define "cloister.apart" -}}
{{- $term := printf "labelSelector:\n  matchLabels:\n%s\ntopologyKey: kubernetes.io/hostname" (include "cloister.selector" . | indent 4) -}}
affinity:
  podAntiAffinity:
    {{- if eq .kind "required" }}
    requiredDuringSchedulingIgnoredDuringExecution:
      - {{ $term | nindent 8 | trim }}
    {{- else }}
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          {{- $term | nindent 10 }}
    {{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "cloister.selector" . | nindent 8 }}
{{- end -}}

{{/* The TEE of a component, checked: (dict "tee" "tdx" "where" "keyservice.tee" "root" $) */}}
{{- define "cloister.tee" -}}
{{- if not .tee -}}{{ fail (printf "%s is not set: sev-snp, sgx, tdx (not for the KeyService), or insecure-simulation, which protects nothing" .where) }}{{- end -}}
{{- if and (eq .tee "insecure-simulation") (not (index .root.Values.tee "insecure-simulation").keySecret) -}}
{{ fail (printf "%s is insecure-simulation, and tee.insecure-simulation.keySecret is not set" .where) }}
{{- end -}}
{{ .tee }}
{{- end -}}

{{- define "cloister.runtimeClass" -}}
{{- if has .tee (list "tdx" "sev-snp") -}}
runtimeClassName: {{ (index .root.Values.tee .tee).runtimeClassName }}
{{- end -}}
{{- end -}}

{{/* Resources of a container with those of SGX: (dict "root" $ "tee" "sgx" "resources" {...}) */}}
{{- define "cloister.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if eq .tee "sgx" -}}
{{- $sgx := .root.Values.tee.sgx -}}
{{- $devices := dict "sgx.intel.com/epc" $sgx.epc "sgx.intel.com/enclave" ($sgx.enclave | toString) "sgx.intel.com/provision" ($sgx.provision | toString) -}}
{{- $_ := set $resources "requests" (merge (default dict $resources.requests) $devices) -}}
{{- $_ := set $resources "limits" (merge (default dict $resources.limits) $devices) -}}
{{- end -}}
{{ toYaml $resources }}
{{- end -}}

{{/* aesmd as a sidecar that starts first and ends last: (dict "root" $ "tee" "sgx") */}}
{{- define "cloister.aesmContainer" -}}
{{- if and (eq .tee "sgx") .root.Values.tee.sgx.aesmImage -}}
- name: aesmd
  image: {{ .root.Values.tee.sgx.aesmImage }}
  restartPolicy: Always
  securityContext:
    {{- include "cloister.containerSecurity" . | nindent 4 }}
  resources:
    requests: { cpu: 10m, memory: 64Mi, sgx.intel.com/epc: 1Mi, sgx.intel.com/enclave: "1", sgx.intel.com/provision: "1" }
    limits: { memory: 256Mi, sgx.intel.com/epc: 1Mi, sgx.intel.com/enclave: "1", sgx.intel.com/provision: "1" }
  volumeMounts:
    - { name: aesmd, mountPath: /var/run/aesmd }
    - { name: aesmd-data, mountPath: /var/opt/aesmd }
{{- end -}}
{{- end -}}

{{- define "cloister.teeMounts" -}}
{{- if eq .tee "insecure-simulation" -}}
- { name: simulation, mountPath: /simulation, readOnly: true }
{{- else if and (eq .tee "sgx") .root.Values.tee.sgx.aesmImage -}}
- { name: aesmd, mountPath: /var/run/aesmd }
{{- end -}}
{{- end -}}

{{- define "cloister.teeVolumes" -}}
{{- if eq .tee "insecure-simulation" -}}
- name: simulation
  secret:
    secretName: {{ (index .root.Values.tee "insecure-simulation").keySecret }}
    defaultMode: 0440
    items:
      - { key: simulation.key, path: simulation.key }
{{- else if and (eq .tee "sgx") .root.Values.tee.sgx.aesmImage -}}
- name: aesmd
  emptyDir: { sizeLimit: 1Mi }
- name: aesmd-data
  emptyDir: { sizeLimit: 64Mi }
{{- end -}}
{{- end -}}

{{/* The bundle is a file of a ConfigMap, replaced while pods run; whoever needs it says so when it is missing. */}}
{{- define "cloister.trustVolume" -}}
- name: trust
  configMap:
    name: {{ required "trust.bundleConfigMap is not set: `kubectl create configmap NAME --from-file=bundle.cbor`" .Values.trust.bundleConfigMap }}
    optional: true
    items:
      - { key: bundle.cbor, path: bundle.cbor }
{{- end -}}

{{/* No shell is needed to wait until nobody sends new connections here. */}}
{{- define "cloister.preStop" -}}
lifecycle:
  preStop:
    sleep: { seconds: 5 }
{{- end -}}

{{/* (dict "ready" "/readyz" "scheme" "HTTP") */}}
{{- define "cloister.probes" -}}
startupProbe:
  httpGet: { path: /healthz, port: http, scheme: {{ .scheme }} }
  periodSeconds: 1
  timeoutSeconds: 3
  failureThreshold: 120
livenessProbe:
  httpGet: { path: /healthz, port: http, scheme: {{ .scheme }} }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: {{ .ready }}, port: http, scheme: {{ .scheme }} }
  periodSeconds: 2
  timeoutSeconds: 3
  failureThreshold: 3
{{- end -}}
