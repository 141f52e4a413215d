"""What tests of several packages share: small models, real servers, a browser, faulty stores."""
