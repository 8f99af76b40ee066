"""A Kubernetes for tests: the part of its API that Cloister's drivers use, and controllers that run processes.

It answers over HTTP as the API's documentation says (API concepts; reference of Pod, Scale, Status; Knative Serving's
API), and does on request what clusters do on bad days. It is no Kubernetes: one namespace, a handful of resources, pods
are child processes on loopback addresses of their own.
"""
