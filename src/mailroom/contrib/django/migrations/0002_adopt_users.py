"""Adopts the table of ``AUTH_USER_MODEL``."""

from django.db import migrations

from mailroom.contrib.django.adoption import adopt_users, release_users


class Migration(migrations.Migration):
    """The adoption of the users."""

    dependencies = [("mailroom", "0001_schema_4")]
    operations = [migrations.RunPython(adopt_users, release_users)]
