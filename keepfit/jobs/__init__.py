"""Who works when: the jobs of RQ, the run queue with its leases, and the messages of a prediction."""
