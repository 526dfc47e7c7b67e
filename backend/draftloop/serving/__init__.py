"""Label Studio's protocol over HTTP: requests, deadlines, run pages, logins, metrics, readiness."""
