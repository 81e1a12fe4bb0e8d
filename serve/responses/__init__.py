"""OpenAI's Responses API, on the path of chat completions.

request = ResponsesRequest.parse(fields)         the request, checked
chat, places = chat_request(request)             the same as a chat completion request, and where its messages are from
events = ResponseEvents(request, model)
for chunk in chunks of the chat completion:
    for event in events.of_chunk(chunk)          what a stream tells
for event in events.of_end()                     the last of them has the whole response
"""
