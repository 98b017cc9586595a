"""The libraries that run models. Nothing else imports mlx."""
