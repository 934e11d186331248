"""Where torch asks for Triton, a Triton that is not there is an error; where it does not, there is nothing to test."""

from importlib import metadata
from platform import system

if system() != "Linux" or not any(name.startswith("triton") for name in metadata.requires("torch") or ()):
    collect_ignore_glob = ["test_triton_*.py"]
