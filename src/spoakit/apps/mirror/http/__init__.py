"""HTTP to targets: connections, the queues in front of them, and the state of the targets."""
