"""Loading and unloading of models, as both transports offer it: who may, and what is refused."""

from service.access import Access
from service.errors import BadRequestError, ForbiddenError
from service.headers import Headers
from service.protocol import Parameters
from service.settings import Settings


def authorize(settings: Settings, access: Access, headers: Headers) -> None:
    """Raises what `Access.check_admin` does, and `ForbiddenError` where nothing is changed by calls."""
    if settings.repository_control != "explicit":
        raise ForbiddenError(
            f"load and unload are off: repository_control is {settings.repository_control}; "
            "set BNFOLD_REPOSITORY_CONTROL=explicit"
        )
    access.check_admin(headers)


def refuse_files(parameters: Parameters) -> None:
    if any(name.startswith("file:") for name in parameters):
        raise BadRequestError("files are not taken here; publish the version into the repository, then load the model")
    if "config" in parameters:
        raise BadRequestError(
            "a config is not taken here; the model's directory and the service's settings say how it is served"
        )
