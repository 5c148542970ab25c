"""Which models serve, and how versions come and go."""

from service.repository.model import Disagreement, Drop, Model, Proof
from service.repository.polling import Poller
from service.repository.repository import Repository
from service.repository.versions import Policy

__all__ = ["Disagreement", "Drop", "Model", "Policy", "Poller", "Proof", "Repository"]
