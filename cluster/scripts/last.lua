-- pair, count -> the rows with the last messages, newest first, each with its number of waiting messages
local key, left, start = p .. 'chat:' .. ARGV[1], tonumber(ARGV[2]), 0
local answer = {}
while left > 0 do
    local at_once = math.min(left, 50)
    local rows = redis.call('ZRANGE', key, start, start + at_once - 1, 'REV')
    for _, row in ipairs(rows) do
        if left <= 0 then
            break
        end
        local id, _, _, count = parse(row)
        table.insert(answer, row)
        table.insert(answer, waiting_of(id))
        left = left - count
    end
    if #rows < at_once then
        break
    end
    start = start + at_once
end
return answer
