{{- define "layerdrift.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The release, once: also where it is called layerdrift. */}}
{{- define "layerdrift.fullname" -}}
{{- $name := include "layerdrift.name" . -}}
{{- if contains $name .Release.Name -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end -}}

{{/* Labels of one part: (list $ "api"). */}}
{{- define "layerdrift.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "layerdrift.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "layerdrift.labels" -}}
{{- $root := index . 0 -}}
{{ include "layerdrift.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{/* name and labels of an object of one part, in the metadata: (list $ "api"). */}}
{{- define "layerdrift.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "layerdrift.fullname" $root }}-{{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "layerdrift.labels" . | nindent 2 }}
{{- end -}}

{{/* An image by its name in values: (list $ "service"). */}}
{{- define "layerdrift.image" -}}
{{- $root := index . 0 -}}
{{- $image := index $root.Values.images (index . 1) -}}
{{- with $root.Values.images.registry }}{{ . }}/{{ end -}}
{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default $root.Chart.AppVersion $image.tag }}{{ end -}}
{{- end -}}

{{- define "layerdrift.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}{{ default (include "layerdrift.fullname" .) .Values.serviceAccount.name }}
{{- else -}}{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{/* Queues whose workers KEDA starts. */}}
{{- define "layerdrift.scaledQueues" -}}
{{- $queues := list -}}
{{- if and .Values.gpuWorkers.enabled .Values.gpuWorkers.scaling.enabled }}{{ $queues = append $queues "gpu" }}{{ end -}}
{{- if and .Values.cpuWorkers.enabled .Values.cpuWorkers.scaling.enabled }}{{ $queues = append $queues "cpu" }}{{ end -}}
{{- join "," $queues -}}
{{- end -}}

{{/* Environment of every part; secrets by reference. */}}
{{- define "layerdrift.environment" -}}
envFrom:
  - configMapRef: { name: {{ include "layerdrift.fullname" . }}-settings }
env:
  {{- if .Values.trial.enabled }}
  - name: LAYERDRIFT_S3_ACCESS_KEY
    value: layerdrift
  - name: LAYERDRIFT_S3_SECRET_KEY
    valueFrom: { secretKeyRef: { name: {{ include "layerdrift.fullname" . }}-trial, key: s3-secret-key } }
  {{- else }}
  {{- with .Values.redis.existingSecret }}{{ if .name }}
  - name: LAYERDRIFT_REDIS_URL
    valueFrom: { secretKeyRef: { name: {{ .name }}, key: {{ .key }} } }
  {{- end }}{{ end }}
  {{- with .Values.s3.existingSecret }}{{ if .name }}
  - name: LAYERDRIFT_S3_ACCESS_KEY
    valueFrom: { secretKeyRef: { name: {{ .name }}, key: {{ .accessKey }} } }
  - name: LAYERDRIFT_S3_SECRET_KEY
    valueFrom: { secretKeyRef: { name: {{ .name }}, key: {{ .secretKey }} } }
  {{- end }}{{ end }}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* The first key; only the API makes it. */}}
{{- define "layerdrift.adminKey" -}}
- name: LAYERDRIFT_ADMIN_KEY
  {{- if .Values.adminKey.existingSecret.name }}
  valueFrom: { secretKeyRef: { name: {{ .Values.adminKey.existingSecret.name }}, key: {{ .Values.adminKey.existingSecret.key }} } }
  {{- else }}
  valueFrom: { secretKeyRef: { name: {{ include "layerdrift.fullname" . }}-trial, key: admin-key } }
  {{- end }}
{{- end -}}

{{/* Annotations and labels of pods: (list $ "api"). */}}
{{- define "layerdrift.podMetadata" -}}
{{- $root := index . 0 -}}
labels:
  {{- include "layerdrift.labels" . | nindent 2 }}
  {{- with $root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  checksum/settings: {{ include (print $root.Template.BasePath "/settings.yaml") $root | sha256sum }}
{{- end -}}

{{/* Of every pod; where it may run comes from the values of its part: (list $ .Values.api). */}}
{{- define "layerdrift.podSpec" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
serviceAccountName: {{ include "layerdrift.serviceAccount" $root }}
automountServiceAccountToken: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: { type: RuntimeDefault }
{{- with $root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $part.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $part.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "layerdrift.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end -}}

{{/* Folders that a part writes to: its own of the image cannot be written. */}}
{{- define "layerdrift.mounts" -}}
- { name: tmp, mountPath: /tmp }
- { name: home, mountPath: /var/lib/layerdrift }
{{- if .Values.models.existingClaim }}
- { name: models, mountPath: /models, readOnly: true }
{{- end }}
{{- end -}}

{{- define "layerdrift.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if .Values.models.existingClaim }}
- name: models
  persistentVolumeClaim: { claimName: {{ .Values.models.existingClaim }}, readOnly: true }
{{- end }}
{{- end -}}

{{/* The pod of a worker: (list $ "gpu-worker" .Values.gpuWorkers "OnFailure"). */}}
{{- define "layerdrift.workerPod" -}}
{{- $root := index . 0 -}}
{{- $part := index . 1 -}}
{{- $workers := index . 2 -}}
{{- $gpu := eq $part "gpu-worker" -}}
metadata:
  {{- include "layerdrift.podMetadata" (list $root $part) | nindent 2 }}
    cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
    karpenter.sh/do-not-disrupt: "true"
spec:
  {{- include "layerdrift.podSpec" (list $root $workers) | nindent 2 }}
  restartPolicy: {{ index . 3 }}
  terminationGracePeriodSeconds: 60
  containers:
    - name: worker
      image: {{ include "layerdrift.image" (list $root (ternary "workerCuda" "worker" $gpu)) }}
      imagePullPolicy: {{ $root.Values.images.pullPolicy }}
      {{- include "layerdrift.environment" $root | nindent 6 }}
        - { name: LAYERDRIFT_METRICS_PORT, value: "9100" }
        {{- if not $gpu }}
        - { name: LAYERDRIFT_DEVICES, value: "0" }
        {{- end }}
        {{- if $workers.scaling.enabled }}
        - { name: LAYERDRIFT_IDLE_SECONDS, value: {{ $root.Values.scaling.idleSeconds | quote }} }
        {{- end }}
      ports:
        - { name: metrics, containerPort: 9100 }
      # open from when the worker listens to its queue
      startupProbe:
        httpGet: { path: /metrics, port: metrics }
        periodSeconds: 5
        failureThreshold: 60
      readinessProbe:
        httpGet: { path: /metrics, port: metrics }
        periodSeconds: 30
        timeoutSeconds: 10
      livenessProbe:
        httpGet: { path: /metrics, port: metrics }
        periodSeconds: 60
        timeoutSeconds: 30
        failureThreshold: 5
      resources:
        {{- $resources := deepCopy $workers.resources }}
        {{- if and $gpu $workers.device.resource }}
        {{- $device := dict $workers.device.resource $workers.device.count }}
        {{- $_ := set $resources "limits" (merge $device (default dict $resources.limits)) }}
        {{- end }}
        {{- if and $gpu $workers.device.class }}
        {{- $_ := set $resources "claims" (list (dict "name" "device")) }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      {{- include "layerdrift.containerSecurity" $root | nindent 6 }}
      volumeMounts:
        {{- include "layerdrift.mounts" $root | nindent 8 }}
  {{- if and $gpu $workers.device.class }}
  resourceClaims:
    - name: device
      resourceClaimTemplateName: {{ include "layerdrift.fullname" $root }}-gpu
  {{- end }}
  volumes:
    {{- include "layerdrift.volumes" $root | nindent 4 }}
    - name: home
      {{- if $workers.scratch.storageClass }}
      ephemeral:
        volumeClaimTemplate:
          spec:
            accessModes: [ReadWriteOnce]
            storageClassName: {{ $workers.scratch.storageClass }}
            resources: { requests: { storage: {{ $workers.scratch.size }} } }
      {{- else }}
      emptyDir: { sizeLimit: {{ $workers.scratch.size }} }
      {{- end }}
{{- end -}}

{{/* The workers of a queue: (list $ "gpu" .Values.gpuWorkers). */}}
{{- define "layerdrift.workers" -}}
{{- $root := index . 0 -}}
{{- $queue := index . 1 -}}
{{- $workers := index . 2 -}}
{{- $part := print $queue "-worker" -}}
{{- if $workers.scaling.enabled }}
apiVersion: keda.sh/v1alpha1
kind: ScaledJob
metadata:
  {{- include "layerdrift.metadata" (list $root $part) | nindent 2 }}
spec:
  pollingInterval: {{ $root.Values.scaling.pollingSeconds }}
  maxReplicaCount: {{ $workers.scaling.max }}
  successfulJobsHistoryLimit: 3
  failedJobsHistoryLimit: 5
  # a change of the chart lets the workers that run finish their jobs
  rollout: { strategy: gradual }
  scalingStrategy:
    # what waits is counted without what runs; a worker counts as pending until it listens
    strategy: accurate
    pendingPodConditions: [Ready, PodScheduled]
  triggers:
    - type: metrics-api
      metadata:
        url: http://{{ include "layerdrift.fullname" $root }}-api.{{ $root.Release.Namespace }}.svc:8000/metrics/queues
        valueLocation: {{ $queue }}.waiting
        targetValue: "1"
  jobTargetRef:
    parallelism: 1
    completions: 1
    backoffLimit: 0
    ttlSecondsAfterFinished: 86400
    template:
      {{- include "layerdrift.workerPod" (list $root $part $workers "Never") | nindent 6 }}
{{- else }}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "layerdrift.metadata" (list $root $part) | nindent 2 }}
spec:
  replicas: {{ $workers.replicas }}
  selector:
    matchLabels:
      {{- include "layerdrift.selector" (list $root $part) | nindent 6 }}
  template:
    {{- include "layerdrift.workerPod" (list $root $part $workers "Always") | nindent 4 }}
{{- end }}
{{- end -}}

{{/* Namespaces by label, as peers of a network policy. */}}
{{- define "layerdrift.namespaces" -}}
{{- range . }}
- namespaceSelector: { matchLabels: {{ toJson . }} }
{{- end }}
{{- end -}}

{{/* /health and not /ready: while Redis or S3 is away the API says so itself, with an error that clients understand. */}}
{{- define "layerdrift.apiProbes" -}}
startupProbe:
  httpGet: { path: /health, port: http }
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  httpGet: { path: /health, port: http }
  periodSeconds: 5
  timeoutSeconds: 3
livenessProbe:
  httpGet: { path: /health, port: http }
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
lifecycle:
  preStop: { sleep: { seconds: 5 } } # until no proxy sends new requests
{{- end -}}
