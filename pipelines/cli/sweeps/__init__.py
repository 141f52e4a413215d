"""What a sweep shows, and how its processes call the stages."""
