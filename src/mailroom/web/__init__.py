"""What every page of ours is made with: the guard before it, Jinja2, and the look.

It needs the extra ``mailroom[http]``. ``Guard`` is put around an application, ``Pages`` renders,
``asset_routes`` serves what lies in the packages' ``static`` folders.
"""

from mailroom.web.assets import asset_routes
from mailroom.web.guard import Guard
from mailroom.web.pages import Pages

__all__ = ["Guard", "Pages", "asset_routes"]
