"""``cloister demo``: the main job on real data, and what the cloud tries in vain. Shipped: anybody can run it."""
