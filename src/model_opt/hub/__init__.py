"""The HTTP service between deployments, and its client: needs the extra `hub`."""
