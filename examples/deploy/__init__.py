"""The quickstart on real SuperNodes, with TLS and authenticated nodes."""
