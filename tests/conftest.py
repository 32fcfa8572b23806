"""For all tests."""

import signal

# Tests may run in the background of a shell, where SIGINT is ignored, also by every program that they
# start: each would be deaf to the Ctrl-C that is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)
