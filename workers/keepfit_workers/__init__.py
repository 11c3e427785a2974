"""The RQ workers: the jobs that learn and predict, and the supervisor of their processes."""
