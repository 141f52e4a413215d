"""What data.mix is given."""
