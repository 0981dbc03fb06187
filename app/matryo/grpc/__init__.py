"""The gRPC door: services of TEI, Encoderfile and the Open Inference Protocol over `service`."""

import os

# The core of the library writes lines of its own to standard error, one for each odd call.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
