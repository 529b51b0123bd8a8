-- pair, id, bytes -> the rows above the id, oldest first, up to so many bytes of packets; each with its
-- number of waiting messages
local key, from, left, at_once = p .. 'chat:' .. ARGV[1], '(' .. ARGV[2] .. '\2', tonumber(ARGV[3]), 20
local answer = {}
while left > 0 do
    local rows = redis.call('ZRANGE', key, from, '+', 'BYLEX', 'LIMIT', 0, at_once)
    for _, row in ipairs(rows) do
        table.insert(answer, row)
        table.insert(answer, waiting_of(string.sub(row, 1, 8)))
        left = left - (#row - HEAD_BYTES)
        from = '(' .. row
    end
    if #rows < at_once then
        break
    end
end
return answer
