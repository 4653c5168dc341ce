"""HTTP to targets: connections, queues of copies, and the health of the targets."""
