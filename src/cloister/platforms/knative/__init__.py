"""Instances as Knative Services: one each, held at one pod, made from a manifest that the operator writes.

What the cluster has to bring: Knative Serving; a file with a Service of ``serving.knative.dev/v1`` as one would apply
it (``[platform.knative] manifest``), whose first container runs ``cloister runtime`` without ``--listen`` (it listens
on ``$PORT``), with ``containerConcurrency`` as the runtime's and ``timeoutSeconds`` above its ``--deadline``; and a
service account for the gateway with the verbs of :data:`cloister.platforms.kubernetes.rbac.KNATIVE`.

What the driver writes into it: name and labels (``cloister.dev/deployment``, ``cloister.dev/instance``,
``networking.knative.dev/visibility: cluster-local``), the annotation ``cloister.dev/group``, and in its template
``autoscaling.knative.dev/min-scale`` and ``max-scale``, both ``"1"``: scaling to zero is the gateway's, which deletes
the Service. The Platform port's promises, and how far Knative can keep them, are in docs/adr/0009-kubernetes.md.
"""
