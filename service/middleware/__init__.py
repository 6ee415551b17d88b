"""What every request passes before a route, and on its way back; the protocol below it."""
