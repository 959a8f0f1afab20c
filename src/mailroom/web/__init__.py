"""What every page of ours is made with: the guard before it, Jinja2, and the look.

It needs the extra ``http``. ``Guard`` is put around an application, ``Pages`` renders,
``asset_routes`` serves what lies in the packages' ``static`` folders, ``read_body`` and ``read_form``
take no more than they should.
"""

from mailroom.web.assets import asset_routes
from mailroom.web.bodies import read_body, read_form
from mailroom.web.guard import Guard
from mailroom.web.pages import Pages

__all__ = ["Guard", "Pages", "asset_routes", "read_body", "read_form"]
