"""The wire shapes of the routes. Nothing else imports them."""
