"""Which models serve, and how versions come and go."""

from service.repository.model import Disagreement, Drop, Model, Proof
from service.repository.polling import Watching
from service.repository.repository import Repository
from service.repository.versions import Policy

__all__ = ["Disagreement", "Drop", "Model", "Policy", "Proof", "Repository", "Watching"]
