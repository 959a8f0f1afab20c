"""What every page needs: the guard, the templates, static files, the server."""
