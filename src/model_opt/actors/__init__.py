"""The measuring process, and the fleet of them on Ray. Importing this loads no Ray: its modules do."""
