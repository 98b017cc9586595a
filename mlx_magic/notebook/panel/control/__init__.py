"""What happens when somebody uses the panel."""
