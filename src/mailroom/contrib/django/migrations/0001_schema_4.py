"""Applies Mailroom's own migrations, of which this version has four."""

from django.conf import settings
from django.db import migrations

from mailroom.contrib.django.adoption import drop_schema, make_schema


class Migration(migrations.Migration):
    """The schema."""

    initial = True
    dependencies = [migrations.swappable_dependency(settings.AUTH_USER_MODEL)]
    operations = [migrations.RunPython(make_schema, drop_schema)]
