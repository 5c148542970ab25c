"""Which models serve, and how their versions are loaded and retired."""

from service.repository.model import Drop, Entry, Model, Proof
from service.repository.polling import Poller
from service.repository.repository import Repository
from service.repository.versions import VersionPolicy

__all__ = ["Drop", "Entry", "Model", "Poller", "Proof", "Repository", "VersionPolicy"]
