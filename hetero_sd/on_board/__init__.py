"""A board that is reached by ssh: bundles are copied to it and run there, with OpenSSH's own client."""

from __future__ import annotations
