"""The running product, attacked: what reaches it, what one request may take, what comes out of it."""
