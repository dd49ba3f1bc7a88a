"""What a run needs around it: text made safe to show, credentials, the webhook."""
