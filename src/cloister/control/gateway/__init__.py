"""The gateway: sealed requests in, to the instance that the dispatcher names, answers back. It sees ciphertext only.

configuration  one TOML file, checked; what differs between two of them (pure)
limits         what one user may ask for at once (pure)
breaker        when an instance gets nothing for a while (pure)
costs          what models cost, as seen from here (pure)
catalogue      which models there are: configured, or found in the model store
flight         one request's way through the gateway
conductor      drives the dispatcher and the platform: commands, events, ticks
watch          asks instances how they are: status, stages, probes
forward        one attempt after the other; answers as they stream
telemetry      metrics and the status page
routes         the HTTP application
app            composition root
"""
