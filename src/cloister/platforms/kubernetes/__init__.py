"""Instances as pods of one Deployment: the gateway sets its number of replicas and says which pod is which instance.

What the cluster has to bring (deploy/ has a chart that does):

* One **Deployment** for each gateway, ``[platform.kubernetes] deployment``, in the gateway's namespace. It leaves
  ``replicas`` out, which are the gateway's to set, through the ``scale`` subresource; no HorizontalPodAutoscaler and no
  second gateway may set them too. Its pods are found by the selector that the ``scale`` subresource tells.
* In its pods a **container named** ``runtime`` (``container``) that runs ``cloister runtime --listen 0.0.0.0:8080``
  (``port``; ``[::]:8080`` for IPv6), with

  ========================= ==========================================================================================
  ``readinessProbe``        ``GET /readyz`` on that port, every second or two: an instance is ready when its pod is
  ``livenessProbe``         ``GET /healthz``; a container that ends or restarts is a dead instance, and its pod goes
  grace period              ``terminationGracePeriodSeconds`` above the runtime's ``--drain``
  last words                ``terminationMessagePolicy: FallbackToLogsOnError``: they are in the reason for the operator
  environment               none; ``$PORT``, where it is set, is where the runtime listens if ``--listen`` says nothing
  ========================= ==========================================================================================

* A **service account** for the gateway with the verbs of :mod:`cloister.platforms.kubernetes.rbac`, and no others. The
  runtimes' pods need none: ``automountServiceAccountToken: false``.

What the driver writes on a pod, and reads again after a restart:

=================================================== ======================= ==========================================
``cloister.dev/instance``                           label                   the instance's id
``cloister.dev/state``                              label                   ``serving`` from ready on, then
                                                                            ``draining``: for the selector of a Service
``cloister.dev/group``                              annotation              what it was started for
``controller.kubernetes.io/pod-deletion-cost``      annotation              of its own pods: others go first
=================================================== ======================= ==========================================

The Platform port's promises, and how far Kubernetes can keep them, are in docs/adr/0009-kubernetes.md.
"""
