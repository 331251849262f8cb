"""Units of work spread over the processes of a cluster, past the loss of any of them."""
