"""The implementations: ``<op>/<impl>.py`` declares the specs and adapters of one implementation of one op."""
