"""What cameras left on disk: picture files, poses, lenses; read, checked and kept, for the data sets to assemble."""

import signal
import threading

import pycolmap  # noqa: F401

# pycolmap's logger takes SIGTERM for a crash and prints a native trace: Python's own handling of it is put back.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
