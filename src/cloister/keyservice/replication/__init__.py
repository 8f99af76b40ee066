"""Several replicas of one KeyService: who leads, who follows, and how the root secret gets to a further one."""
