"""A demonstration: an embedded PostgreSQL, and a tour of the main job."""
