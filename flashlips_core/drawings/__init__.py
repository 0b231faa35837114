"""Pictures for people: contact sheets, pose curves, face tracks."""
