{{/* The options of one pool's runtimes: (dict "root" $ "pool" {settings} "tee" "tdx") */}}
{{- define "cloister.runtimeArgs" -}}
{{- /* int64: Go would write a million as 1e+06. */ -}}
{{- $at := .pool.runtime -}}
{{- $root := .root -}}
- --keyservice={{ include "cloister.keyserviceUrl" $root }}
- --bundle=/trust/bundle.cbor
- --bundle-root={{ required "trust.bundleRoot is not set: the public key that signs the bundle" $root.Values.trust.bundleRoot }}
- --bundle-version={{ int64 $root.Values.trust.bundleVersion }}
- --store={{ required "store.url is not set: where encrypted models are" $root.Values.store.url }}
- --isolation={{ $at.isolation }}
- --concurrency={{ int64 $at.concurrency }}
- --memory-mb={{ int64 $at.memoryMb }}
- --threads={{ int64 $at.threads }}
- --queue={{ int64 $at.queue }}
- --deadline={{ int64 $at.deadlineSeconds }}
- --drain={{ int64 $at.drainSeconds }}
{{- if not $at.coTenancy }}
- --no-co-tenancy
{{- end }}
{{- range $at.engines }}
- --engine={{ . }}
{{- end }}
{{- with $at.keyserviceId }}
- --keyservice-id={{ . }}
{{- end }}
{{- if $at.collateralConfigMap }}
- --collateral=/collateral/collateral.bundle
{{- end }}
{{- if eq .tee "insecure-simulation" }}
- --simulation-key=/simulation/simulation.key
{{- end }}
{{- end -}}

{{/* Models, as much again for what requests work with, and the process itself; a core for each request at once. */}}
{{- define "cloister.runtimeResources" -}}
{{- $at := .pool.runtime -}}
{{- if $at.resources -}}{{ toJson $at.resources }}
{{- else -}}
{{- $memory := printf "%dMi" (add (mul 2 (int $at.memoryMb)) 512) -}}
{{- toJson (dict "requests" (dict "cpu" (mul (int $at.concurrency) (int $at.threads) | toString) "memory" $memory) "limits" (dict "memory" $memory)) -}}
{{- end -}}
{{- end -}}

{{/* The pod of one runtime. */}}
{{- define "cloister.runtimePod" -}}
{{- $at := .pool.runtime -}}
{{- include "cloister.podBasics" (dict "root" .root "at" $at "account" "runtime") }}
{{- with include "cloister.runtimeClass" . }}
{{ . }}
{{- end }}
terminationGracePeriodSeconds: {{ add 10 (int $at.drainSeconds) }}
{{- with include "cloister.aesmContainer" . }}
initContainers:
  {{- . | nindent 2 }}
{{- end }}
containers:
  - name: runtime
    image: {{ include "cloister.image" (dict "image" .root.Values.image "what" "image") }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    args:
      - runtime
      - --listen={{ .root.Values.listenHost }}:8080
      {{- include "cloister.runtimeArgs" . | nindent 6 }}
    {{- with .root.Values.store.credentialsSecret }}
    envFrom:
      - secretRef: { name: {{ . }} }
    {{- end }}
    ports:
      - { name: http, containerPort: 8080, protocol: TCP }
    {{- include "cloister.probes" (dict "ready" "/readyz" "scheme" "HTTP") | nindent 4 }}
    {{- include "cloister.preStop" . | nindent 4 }}
    securityContext:
      {{- include "cloister.containerSecurity" . | nindent 6 }}
    resources:
      {{- include "cloister.resources" (dict "root" .root "tee" .tee "resources" (include "cloister.runtimeResources" . | fromJson)) | nindent 6 }}
    terminationMessagePolicy: FallbackToLogsOnError
    volumeMounts:
      - { name: trust, mountPath: /trust, readOnly: true }
      {{- if $at.collateralConfigMap }}
      - { name: collateral, mountPath: /collateral, readOnly: true }
      {{- end }}
      {{- with include "cloister.teeMounts" . }}
      {{- . | nindent 6 }}
      {{- end }}
volumes:
  {{- include "cloister.trustVolume" .root | nindent 2 }}
  {{- with $at.collateralConfigMap }}
  - name: collateral
    configMap: { name: {{ . }} }
  {{- end }}
  {{- with include "cloister.teeVolumes" . }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* gateway.toml of one pool, as a table in JSON: (dict "root" $ "pool" {...} "name" "default") */}}
{{- define "cloister.gatewayTable" -}}
{{- $at := .pool -}}
{{- $table := deepCopy $at.gateway.configuration -}}
{{- $pool := merge (dict "memory_mb" $at.runtime.memoryMb "concurrency" $at.runtime.concurrency) (default dict $table.pool) -}}
{{- $_ := set $table "pool" $pool -}}
{{- $_ := set $table "store" (dict "url" .root.Values.store.url) -}}
{{- $runtimes := printf "%s-runtime-%s" (include "cloister.name" .root) .name -}}
{{- $platform := dict "start_timeout_s" $at.scaling.startTimeoutSeconds "stop_grace_s" $at.runtime.drainSeconds -}}
{{- if eq $at.scaling.by "gateway" -}}
{{- /* The next gateway takes the pods over; with the release they go by themselves. */ -}}
{{- $driver := dict "deployment" $runtimes "namespace" .root.Release.Namespace -}}
{{- $_ := mustMergeOverwrite $platform (dict "kind" "kubernetes" "on_exit" "leave" "kubernetes" $driver) -}}
{{- else -}}
{{- $address := printf "http://%s.%s.svc:8080" $runtimes .root.Release.Namespace -}}
{{- $static := dict "addresses" (list $address) "scaled" (ne $at.scaling.by "fixed") -}}
{{- $_ := mustMergeOverwrite $platform (dict "kind" "static" "static" $static) -}}
{{- end -}}
{{- $_ := set $table "platform" $platform -}}
{{- if eq $at.scaling.by "keda" -}}
{{- $_ := set $table "scaler" (dict "listen" (printf "%s:9090" .root.Values.listenHost)) -}}
{{- end -}}
{{- toJson $table -}}
{{- end -}}
