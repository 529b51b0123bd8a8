-- id -> 1: the user's node ends the connection; 0: the user is offline
if not holder(ARGV[1]) then
    return 0
end
tell('k ' .. ARGV[1])
return 1
