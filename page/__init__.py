"""The local web page of app.py: control of pictures and of shapes by asynchronous times."""
