"""What holds for all tests."""

import signal

# A shell starts what runs in its background with SIGINT ignored, and all it starts inherits that;
# tests send SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
