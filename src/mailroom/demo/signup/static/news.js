"use strict";
// Loads the page again when its mail has bounced. Without this script, loading it by hand does the same.
new EventSource("/news").addEventListener("bounced", () => location.reload());
